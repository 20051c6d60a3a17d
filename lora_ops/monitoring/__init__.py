"""Weekly answers about each adapter: is it fast, safe, the same as last week, and worth its money?"""
