"""Composition on real text: does a query's own mixture beat the generalist, static merges and the best single specialist?"""
