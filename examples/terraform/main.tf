terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

resource "aws_cloudformation_stack" "customers" {
  name          = "customers"
  template_body = local.template

  timeouts {
    create = "60m"
    update = "60m"
    delete = "60m"
  }
}
