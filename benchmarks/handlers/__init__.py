"""What cold.py holds the function against. Each stands alone, beside boto3 and crhelper as pip installs them."""
