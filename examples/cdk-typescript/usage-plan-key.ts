import {
  Annotations,
  CustomResource,
  Duration,
  Fn,
  Reference,
  RemovalPolicy,
  SecretValue,
  Stack,
  Stage,
  Token,
  Tokenization,
} from 'aws-cdk-lib';
import { CfnUsagePlanKey } from 'aws-cdk-lib/aws-apigateway';
import type { IApiKey, IUsagePlan } from 'aws-cdk-lib/aws-apigateway';
import type { Construct, IConstruct } from 'constructs';

/** What to do when the key is in the plan already, and not through this stack. */
export const OnExisting = {
  /** Refuse: the deployment fails. */
  FAIL: 'Fail',
  /** Use the key, and leave it in the plan when the resource goes. */
  ADOPT: 'Adopt',
  /** Use the key, and own it from the next deployment on. */
  TAKE: 'Take',
} as const;
export type OnExisting = (typeof OnExisting)[keyof typeof OnExisting];

/** Properties of a UsagePlanKey. */
export interface UsagePlanKeyProps {
  /** The usage plan. Change it to move the key. */
  readonly plan: IUsagePlan;
  /** @default - the scope, if it is an API key */
  readonly apiKey?: IApiKey;
  /** @default OnExisting.FAIL */
  readonly onExisting?: OnExisting;
  /** Whether `value` is there. @default false */
  readonly includeValue?: boolean;
  /** Change it to have the association verified, and repaired, on a deployment. @default - none */
  readonly verifyTrigger?: string;
  /** How long CloudFormation waits, a minute to an hour. @default Duration.minutes(10) */
  readonly serviceTimeout?: Duration;
  /**
   * The ARN of the function that serves Custom::UsagePlanKey. Never change it.
   * @default - the export of the stack usage-plan-key
   */
  readonly serviceToken?: string;
  /** @default RemovalPolicy.DESTROY */
  readonly removalPolicy?: RemovalPolicy;
}

/**
 * One API key in one usage plan.
 *
 * Make it under the key, one for each API stage:
 *
 *     new UsagePlanKey(key, 'InPlan', { plan });
 *
 * The CDK derives the logical id from the scopes and the id. A change of `plan` moves the key only if the
 * logical id stays. So do not make it under the plan or under a construct for one tier, and do not name the
 * tier in the id: there a customer who changes plans is a new resource, and API Gateway refuses the key's
 * second plan.
 *
 * Use it instead of `plan.addApiKey(key)` and `CfnUsagePlanKey`, which declare a native
 * AWS::ApiGateway::UsagePlanKey. Two resources cannot both attach the same key, so the CDK refuses to
 * synthesise an app that declares both, unless this one has OnExisting.ADOPT or OnExisting.TAKE.
 */
export class UsagePlanKey extends CustomResource {
  /** The stages that look for natives when the CDK validates them. */
  private static readonly looking = new WeakSet<IConstruct>();
  private readonly props: UsagePlanKeyProps & { readonly apiKey: IApiKey };

  constructor(scope: Construct, id: string, props: UsagePlanKeyProps) {
    const apiKey = props.apiKey ?? ('keyId' in scope ? (scope as Construct & IApiKey) : undefined);
    const onExisting = props.onExisting ?? OnExisting.FAIL;
    const path = `${scope.node.path}/${id}`;
    if (!apiKey) {
      throw new Error(`${path} needs apiKey, or an API key as its scope`);
    }
    if (!Object.values(OnExisting).includes(onExisting)) {
      throw new Error(`${path}: onExisting is not ${Object.values(OnExisting).join(' or ')}`);
    }
    super(scope, id, {
      resourceType: 'Custom::UsagePlanKey',
      serviceToken: props.serviceToken ?? Fn.importValue('usage-plan-key-FunctionArn'),
      serviceTimeout: props.serviceTimeout ?? Duration.minutes(10),
      removalPolicy: props.removalPolicy ?? RemovalPolicy.DESTROY,
      properties: {
        UsagePlanId: checked(`${path}: plan.usagePlanId`, props.plan.usagePlanId),
        KeyId: checked(`${path}: apiKey.keyId`, apiKey.keyId),
        OnExisting: onExisting,
        IncludeValue: props.includeValue ?? false,
        VerifyTrigger: props.verifyTrigger,
      },
    });
    this.props = { ...props, apiKey };
    if (this.node.scopes.includes(props.plan)) {
      Annotations.of(this).addWarningV2(
        'usage-plan-key:scope',
        'The logical id names the plan, so a change of plan moves no key. Make it under the key',
      );
    }
    const stage = Stage.of(this) ?? this.node.root;
    if (!UsagePlanKey.looking.has(stage)) {
      UsagePlanKey.looking.add(stage);
      stage.node.addValidation({ validate: () => UsagePlanKey.natives(stage.node.findAll()) });
    }
  }

  /** What the last request came to: ATTACHED, MOVED, VERIFIED and so on. */
  public get outcome(): string {
    return this.getAttString('Outcome');
  }

  /** The key's value, with `includeValue`. Put it into a secret, and nowhere else. */
  public get value(): SecretValue {
    if (!this.props.includeValue) {
      throw new Error(`${this.node.path} returns no value without includeValue`);
    }
    return SecretValue.resourceAttribute(this.getAttString('Value'));
  }

  private static natives(constructs: IConstruct[]): string[] {
    const natives = constructs.filter((each) => each instanceof CfnUsagePlanKey);
    const ours = constructs
      .filter((each) => each instanceof UsagePlanKey)
      .filter(({ props }) => (props.onExisting ?? OnExisting.FAIL) === OnExisting.FAIL)
      .map((each) => [identity(each, each.props.apiKey.keyId, each.props.plan.usagePlanId), each.node.path]);
    return natives.flatMap((native) => {
      const association = identity(native, native.keyId, native.usagePlanId);
      return ours
        .filter(([other]) => other === association)
        .map(([, path]) => `${native.node.path} attaches the same key as ${path}: leave the native one out`);
    });
  }
}

/** Refuse a literal that is no id, as the function would, without showing it: it may be a key's value. */
function checked(what: string, id: string | undefined): string {
  // Something stands here that nobody knows yet: a token, a dynamic reference, the CDK's dummy for a lookup.
  const unknown = /\$\{Token\[[^\]]*\]\}|\{\{resolve:(?!ssm-secure:)[^}]*\}\}|^dummy-value-for-.*/g;
  const known = /^(?!(null|none|undefined|nan|nil|false|true)$)[a-z0-9_-]{1,19}$/i;
  if (id === undefined || !known.test(id.replace(unknown, 'x'))) {
    throw new Error(
      `${what} is no id: an id has 1 to 19 letters, digits, - and _ (a name, an ARN, a key's value, ` +
        'the Ref of a UsagePlanKey and the text of a missing value are none)',
    );
  }
  return id;
}

/** Identify ids by the constructs behind them: the resources of two stacks can have the same `Ref`. */
function identity(scope: IConstruct, ...ids: string[]): string {
  const stack = Stack.of(scope);
  const identities = ids.map((id) => {
    const { length, firstToken } = Tokenization.reverseString(id);
    if (length === 1 && firstToken && Reference.isReference(firstToken)) {
      return `${firstToken.target.node.path} ${firstToken.displayName.replace(/^(Ref|Id|APIKeyId)$/, '')}`;
    }
    const place = Token.isUnresolved(id) ? stack.node.path : stack.environment;
    return `${place} ${JSON.stringify(stack.resolve(id))}`;
  });
  return identities.join();
}
