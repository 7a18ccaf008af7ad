"""The fault campaign: stories of stacks, with a fault at every call that the function makes in them.

`make campaign` plays all of it and prints counts; `tests/test_campaign.py` plays a part.
"""
