"""Floor 5: one model over several devices: tensor parallel inference; what training needs is not there yet."""
