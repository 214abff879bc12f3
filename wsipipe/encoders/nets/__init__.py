"""Networks: what stands between normalised pixels and one vector a tile. All need torch."""
