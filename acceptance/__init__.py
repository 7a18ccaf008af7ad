"""Tries the project in a real AWS account, asks AWS what nobody knows, and leaves nothing behind.

    cli ─► guard: the account, the cost, a question to the user
     ├─► world: a REST API, plans, keys, a bucket, the function's stack; and how to ask about them
     ├─► stories: stacks with Custom::UsagePlanKey, and what has to be true after each
     ├─► questions: one small experiment for each thing that no document says
     ├─► clean: delete all that carries the tag
     └─► report: what somebody can send in an issue

embedded.py is an AWS on this machine, on which the whole run plays without an account. docs/acceptance.md
is the manual.
"""
