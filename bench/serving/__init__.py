"""What `bench/serve.py` is made of: the chats, the client, the servers under test."""
