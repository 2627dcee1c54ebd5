"""Pages for listeners; Gradio (extra ``app``) is imported only when a page is built."""
