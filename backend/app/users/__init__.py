"""Users: sign-up, verification and what is mailed about them."""
