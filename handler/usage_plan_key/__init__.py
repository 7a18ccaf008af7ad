"""Backs the CloudFormation resource type Custom::UsagePlanKey: one API key in one usage plan.

    event ─► app ─► provider ─► request ─► (queue) ─► service ─► response ─► CloudFormation
                                                        │ asks the rules
                                                        ├─► ledger ─► DynamoDB
                                                        └─► api_gateway ─► API Gateway

`app` wires everything and is the Lambda entry. `provider` handles one invocation. `custom_resource` mends
crhelper. `retry` has every wait, `errors` every error, `model` the nouns.
`errors`, `model`, `request` and `rules` import no AWS library. `watch` is a function of its own: it compares
the ledger with the plans. `metrics` counts.
"""
