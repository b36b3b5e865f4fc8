from tests.app.conftest import make_settings, model_path, serve

__all__ = ["make_settings", "model_path", "serve"]
