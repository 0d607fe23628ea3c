"""Compatible specialization, tested: when may the MLPs of two experts be mixed, and what does a router gain?"""
