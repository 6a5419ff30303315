"""Invoices as PDF: the same bytes for the same invoice, whenever and wherever they are made."""
