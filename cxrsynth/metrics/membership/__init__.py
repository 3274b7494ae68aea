"""Membership inference: can who holds a model's weights tell the images it was trained on from others?"""
