"""Hearing and speaking in realtime sessions, with the services that transcribe and speak."""
