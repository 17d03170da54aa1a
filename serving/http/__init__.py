"""HTTP: the socket, the checks of every request, routes, and their description."""
