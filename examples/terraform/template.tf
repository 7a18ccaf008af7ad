variable "customers" {
  description = "The key's id and the plan's id by the customer's name, which has letters and digits only."
  type        = map(object({ key_id = string, plan_id = string }))
}

locals {
  template = jsonencode({
    Resources = {
      for name, customer in var.customers : name => {
        Type = "Custom::UsagePlanKey"
        Properties = {
          ServiceToken   = { "Fn::ImportValue" = "usage-plan-key-FunctionArn" }
          ServiceTimeout = 600
          UsagePlanId    = customer.plan_id
          KeyId          = customer.key_id
        }
      }
    }
  })
}
