"""Templates that declare Custom::UsagePlanKey, and a demonstration that deploys them."""
