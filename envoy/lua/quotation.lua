-- A client's text, so that it can stand in any message.
return function(text)
  return (text:gsub('[%c"\\\128-\255]', "?"))
end
