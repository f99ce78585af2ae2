"""One file for each library that is optional; nothing else imports them."""
