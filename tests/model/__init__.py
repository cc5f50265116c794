"""The rules of ownership in every order that fits into a bound."""
