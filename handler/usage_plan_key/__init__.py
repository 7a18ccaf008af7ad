"""Backs the CloudFormation resource type Custom::UsagePlanKey: one association of an API key with a usage plan.

    event ─► request ─► service ─► answer ─► CloudFormation
                          │ asks the rules of `lifecycle`
                          ├─► ledger ─► DynamoDB
                          └─► api_gateway ─► API Gateway

`app` is the Lambda entry, and `retry` the one home of every wait. `association`, `request` and `lifecycle` import no AWS library.
"""
