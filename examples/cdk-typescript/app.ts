import { App, Duration, Stack } from 'aws-cdk-lib';
import { ApiKey, MockIntegration, RestApi } from 'aws-cdk-lib/aws-apigateway';
import { Secret } from 'aws-cdk-lib/aws-secretsmanager';
import { StringParameter } from 'aws-cdk-lib/aws-ssm';
import { OnExisting, UsagePlanKey } from './usage-plan-key';

const app = new App();
const stack = new Stack(app, 'Customers');
const api = new RestApi(stack, 'Api');
api.root.addMethod('GET', new MockIntegration(), { apiKeyRequired: true });

const apiStages = [{ api, stage: api.deploymentStage }];
const free = api.addUsagePlan('Free', { apiStages, throttle: { rateLimit: 1, burstLimit: 2 } });
const pro = api.addUsagePlan('Pro', { apiStages, throttle: { rateLimit: 50, burstLimit: 100 } });

new UsagePlanKey(new ApiKey(stack, 'Acme'), 'InPlan', { plan: free });

// Or under the stack, with the customer's name.
new UsagePlanKey(stack, 'Umbrella', {
  plan: pro,
  apiKey: new ApiKey(stack, 'UmbrellaKey'),
});

// The function's ARN from SSM, and everything else that can be said.
new UsagePlanKey(new ApiKey(stack, 'Globex'), 'InPlan', {
  plan: pro,
  serviceToken: StringParameter.valueForStringParameter(
    stack,
    '/usage-plan-key/function-arn',
  ),
  serviceTimeout: Duration.minutes(20),
  onExisting: OnExisting.TAKE,
  verifyTrigger: '1',
});

// A secret holds the key's value.
const initech = new UsagePlanKey(new ApiKey(stack, 'Initech'), 'InPlan', {
  plan: free,
  includeValue: true,
});
new Secret(stack, 'InitechSecret', { secretStringValue: initech.value });

app.synth();
