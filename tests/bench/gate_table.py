def table(*_): return "", 0
