"""People judge blinded pairs of answers; what they say becomes evidence of a version."""
