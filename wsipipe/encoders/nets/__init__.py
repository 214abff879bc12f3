"""Networks: what stands between normalised pixels and one vector a tile. All of these need torch."""
