"""What the queue is for, shown: the project's own code in virtual time, next to what others do (`make benchmark`).

    world.py      virtual time: functions are threads, one runs at a time
    model.py      the parts around us: API Gateway, DynamoDB, SQS and Lambda, CloudFormation
    policies.py   what others do when API Gateway is busy
    waves.py      creates, deletes and moves, all at once
    storms.py     rollbacks, and functions that die
    __main__.py   the table and the plot
    honest.py     the same in real time, with real processes

Everything that is random comes from a seed, so every run gives the same figures.
"""
