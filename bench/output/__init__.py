"""What measurements print, keep and draw."""
