"""A ComfyUI to try EMQ with, and to test it against: downloaded, cached, never part of the project."""
