"""Backs the CloudFormation resource type Custom::UsagePlanKey: one association of an API key with a usage plan.

    event ─► app ─► provider ─► request ─► (queue) ─► service ─► response ─► CloudFormation
                                                        │ asks the rules
                                                        ├─► ledger ─► DynamoDB
                                                        └─► api_gateway ─► API Gateway

`app` wires everything and is the Lambda entry. `provider` does what one invocation asks for.
`custom_resource` is crhelper, mended.
`retry` has every wait, `errors` everything that can go wrong, `model` the nouns.
`errors`, `model`, `request` and `rules` import no AWS library.
"""
