def report(sweep):
    for n, t in sweep.trials().items():
        print(n, t.state, t.values, t.params, t.user_attrs)
    return []
