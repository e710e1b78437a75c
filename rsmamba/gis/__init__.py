"""Maps as files: GeoTIFF, polygons, colours, comparison with the truth. No torch in here."""
