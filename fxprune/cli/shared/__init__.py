"""What the commands share: how they speak, what they read, and how they write."""
