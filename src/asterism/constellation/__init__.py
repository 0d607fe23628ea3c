"""constellation"""
