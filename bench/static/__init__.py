"""What is known of every kernel without a GPU: the compiler's figures, and what the host executor counts."""
