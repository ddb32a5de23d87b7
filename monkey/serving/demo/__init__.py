"""The demo: a page in the browser to ask a model about pictures, for many people at once."""
