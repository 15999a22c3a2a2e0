"""Small things that several rooms share: progress bars, logging, checks of arguments."""
