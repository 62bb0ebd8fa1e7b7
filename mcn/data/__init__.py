"""Videos on disk -> clips as tensors."""

from mcn.data.readers import VideoError, open_video, read_clip

__all__ = ["VideoError", "open_video", "read_clip"]
