"""L1: reading rows, rendering chats, trained-token masks."""
