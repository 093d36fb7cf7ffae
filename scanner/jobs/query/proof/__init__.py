"""What a query tells beside verdicts: volumes, rarity, membership, and whether the method fits."""
