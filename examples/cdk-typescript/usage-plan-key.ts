import { CustomResource, Duration, Fn, RemovalPolicy, SecretValue, Stack } from 'aws-cdk-lib';
import { CfnUsagePlanKey, IApiKey, IUsagePlan } from 'aws-cdk-lib/aws-apigateway';
import { Construct } from 'constructs';

/** What to do when the key is in the plan already, and not through this stack. */
export enum OnExisting {
  /** Refuse: the deployment fails. */
  FAIL = 'Fail',
  /** Use the key, and leave it in the plan when the resource goes. */
  ADOPT = 'Adopt',
  /** Use the key, and own it from the next deployment on. */
  TAKE = 'Take',
}

/** Properties of a UsagePlanKey. */
export interface UsagePlanKeyProps {
  /** The usage plan. Change it to move the key. */
  readonly plan: IUsagePlan;
  /** The API key. */
  readonly apiKey: IApiKey;
  /** @default OnExisting.FAIL */
  readonly onExisting?: OnExisting;
  /** Whether `value` is there. @default false */
  readonly includeValue?: boolean;
  /** Change it to have the association verified, and repaired, on a deployment. @default none */
  readonly verifyTrigger?: string;
  /** How long CloudFormation waits, a minute to an hour. @default Duration.minutes(10) */
  readonly serviceTimeout?: Duration;
  /**
   * The ARN of the function that serves Custom::UsagePlanKey. Never change it.
   * @default the export of the stack usage-plan-key
   */
  readonly serviceToken?: string;
  /** @default RemovalPolicy.DESTROY */
  readonly removalPolicy?: RemovalPolicy;
}

/**
 * One API key in one usage plan.
 *
 * Use it instead of `plan.addApiKey(key)`, which declares a native AWS::ApiGateway::UsagePlanKey. Two
 * resources cannot both attach the same key, so the CDK refuses to synthesise an app that declares both.
 */
export class UsagePlanKey extends CustomResource {
  private readonly includesValue: boolean;

  constructor(scope: Construct, id: string, props: UsagePlanKeyProps) {
    const onExisting = props.onExisting ?? OnExisting.FAIL;
    super(scope, id, {
      resourceType: 'Custom::UsagePlanKey',
      serviceToken: props.serviceToken ?? Fn.importValue('usage-plan-key-FunctionArn'),
      serviceTimeout: props.serviceTimeout ?? Duration.minutes(10),
      removalPolicy: props.removalPolicy,
      properties: {
        UsagePlanId: props.plan.usagePlanId,
        KeyId: props.apiKey.keyId,
        OnExisting: onExisting,
        IncludeValue: props.includeValue ?? false,
        VerifyTrigger: props.verifyTrigger,
      },
    });
    this.includesValue = props.includeValue ?? false;
    this.node.addValidation({ validate: () => (onExisting === OnExisting.FAIL ? this.natives(props) : []) });
  }

  /** What the last request came to: ATTACHED, MOVED, VERIFIED and so on. */
  public get outcome(): string {
    return this.getAttString('Outcome');
  }

  /** The key's value, with `includeValue`. Put it into a secret, and nowhere else. */
  public get value(): SecretValue {
    if (!this.includesValue) {
      throw new Error(`${this.node.path} returns no value without includeValue`);
    }
    return SecretValue.resourceAttribute(this.getAttString('Value'));
  }

  private natives({ plan, apiKey }: UsagePlanKeyProps): string[] {
    const keyOf = (key: string) => JSON.stringify(Stack.of(plan).resolve(key));
    return plan.node.children
      .filter((child) => child instanceof CfnUsagePlanKey && keyOf(child.keyId) === keyOf(apiKey.keyId))
      .map((native) => `${native.node.path} attaches the same key: leave out plan.addApiKey()`);
  }
}
