"""The model under study: where its parts are, how it is loaded and asked, on which device."""
