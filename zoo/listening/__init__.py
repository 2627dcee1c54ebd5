"""Pages for listeners.

Their logic is plain functions; Gradio (extra ``app``) is imported when a page is built.
"""
