"""Hybrid parallel training: encoders replicated or sharded, class weights split over ranks."""
