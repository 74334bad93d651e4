def page(r): return ''
def failures(r): return ["/".join(k)+": "+"; ".join(v["faults"]) for k,v in r.items() if v["passed"] is False]
