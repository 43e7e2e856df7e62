"""A notary's dossiers: business tables of its own, linked to runs by metadata alone."""
