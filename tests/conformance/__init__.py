"""What the product answers, compared with the model step by step."""
