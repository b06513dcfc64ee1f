"""The operator's side of a real federation: the server's home, its processes, its sites, the run that is wanted."""

from server.control.home import ServerHome, ServerSettings

__all__ = ["ServerHome", "ServerSettings"]
