"""What to do with a GPU when one is at hand for half an hour: three resumable commands of at most nine minutes."""
