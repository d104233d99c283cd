"""Entry points for the ``deepspeed`` launcher; they only wire."""
