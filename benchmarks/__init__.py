"""Shows the queue's effect: runs the project's code in virtual time, beside others (`make benchmark`).

    world.py      virtual time: functions are threads, one runs at a time
    model.py      the services around the function: API Gateway, DynamoDB, SQS and Lambda, CloudFormation
    policies.py   the policies of others when API Gateway is busy
    waves.py      creates, deletes and moves, all at once
    storms.py     rollbacks, and functions that die
    waits.py      keys that API Gateway refuses for an hour, and others beside them
    __main__.py   the table and the plot
    honest.py     the same in real time, with real processes

A seed determines everything random, so every run gives the same figures.
"""
